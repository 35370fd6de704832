"""`python -m kdcache.cli`, and with several processes `accelerate launch -m kdcache.cli build ...`."""

from kdcache.cli.main import main

if __name__ == "__main__":
    main()
