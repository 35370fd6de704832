"""A page in a real headless browser: its layout, the messages on its console, and how it prints."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

# Run in a copy of the page inside a frame of each width. Lengths are CSS pixels of that frame.
MEASURE = """
const inside = (element, parts) => parts.some((part) => element.closest(part));
const name = (element) => element.tagName + ": " + element.textContent.trim().slice(0, 40);
const measure = (frame) => {
  const page = frame.contentDocument, width = frame.contentWindow.innerWidth, found = {};
  found.width = width;
  found.content = page.documentElement.scrollWidth;
  found.outside = [...page.querySelectorAll("main *")]
    .filter((e) => !inside(e, [".scroll", "pre"]) && e.getBoundingClientRect().right > width + 1).map(name);
  found.clipped = [];
  found.overlaps = [];
  for (const chart of page.querySelectorAll("figure > svg")) {
    const frame = chart.getBoundingClientRect();
    const texts = [...chart.querySelectorAll("text")].map((e) => [e, e.getBoundingClientRect()]);
    for (const [text, box] of texts)
      if (box.left < frame.left - 2 || box.right > frame.right + 2 || box.top < frame.top - 2
          || box.bottom > frame.bottom + 2) found.clipped.push(name(text));
    texts.forEach(([one, a], index) => texts.slice(index + 1).forEach(([other, b]) => {
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (across > 2 && down > a.height / 2) found.overlaps.push(name(one) + " / " + name(other));
    }));
  }
  found.charts = page.querySelectorAll("figure > svg").length;
  found.scheme = getComputedStyle(page.body).backgroundColor;
  return found;
};
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(measure);
  document.body.innerHTML = "";
  document.body.appendChild(document.createElement("pre")).textContent = JSON.stringify(found);
});
"""


def find_browser() -> str:
    """Skips the test if there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser found ({', '.join(NAMES)}): apt-get install chromium")
    return found


@dataclass(frozen=True)
class Printed:
    """A page on paper."""

    pages: int
    size_pt: tuple[float, float]
    console: list[str]  # the browser's messages while it showed the page


def measure(page: Path, widths: list[int], scratch: Path, *flags: str) -> list[dict[str, Any]]:
    """The layout of a page at several widths, measured by MEASURE. The page's security policy is removed for that."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    quoted = text.replace("&", "&amp;").replace('"', "&quot;")
    frames = "".join(f'<iframe width="{width}" height="900" srcdoc="{quoted}"></iframe>' for width in widths)
    copy = scratch / "measured.html"
    copy.write_text(f'<!doctype html><meta charset="utf-8"><body>{frames}<script>{MEASURE}</script>')
    shown = _run(scratch, "--dump-dom", *flags, copy.as_uri()).stdout
    found = re.search(r"<pre>(.*)</pre>", shown, re.DOTALL)
    assert found, shown[:500]
    measured: list[dict[str, Any]] = json.loads(
        found[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&")
    )
    return measured


def print_page(page: Path, scratch: Path) -> Printed:
    """The page, unchanged, as a PDF."""
    target = scratch / "printed.pdf"
    said = _run(scratch, "--enable-logging=stderr", f"--print-to-pdf={target}", page.as_uri()).stderr
    data = target.read_bytes()
    box = re.search(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)", data)
    assert box
    return Printed(
        pages=len(re.findall(rb"/Type\s*/Page\b(?!s)", data)),
        size_pt=(float(box[1]), float(box[2])),
        console=[line for line in said.splitlines() if "CONSOLE" in line],
    )


def _run(scratch: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={scratch / 'profile'}")
    command = [find_browser(), *flags, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
