"""Credentials in a URL are neither shown nor saved."""

import pytest

from kdcache.cache.storage.urls import redact


def test_user_information_is_cut_out():
    assert redact("s3://key:secret@bucket/team") == "s3://bucket/team"
    assert redact("/plain/path@home") == "/plain/path@home"


@pytest.mark.parametrize(
    "url", ["s3://KEY:pa55word@bucket/x", "s3://KEY:pa55/word@bucket/x", "https://user:pa55word@host/x"]
)
def test_credentials_in_a_url_are_refused_and_never_shown(url, kdcache):
    assert "pa55" not in redact(url) and "word" not in redact(url)
    for arguments in (
        ["info", url],
        ["ls", "--home", url],
        ["verify", url],
        ["view", url],
        ["fidelity", url],
    ):
        code, out, err = kdcache(*arguments)
        assert code == 2 and "credentials" in err
        assert not any(part in out + err for part in ("pa55", "word", "KEY:"))
    assert redact("https://host:8080/a@b") == "https://host:8080/a@b"
