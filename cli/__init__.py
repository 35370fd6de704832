"""The kdcache command line: one file a command."""
