"""The ``wattline`` command: one file per group of commands."""
