"""`bascule`: what a person says to a node. A verb loads the heavy libraries that it needs.

`root` holds the group and what all commands share, `showing` and `doing` the verbs, `permits`
and `settings` their groups, `service` what the system runs. What the verbs do is in
`updater.verbs`; here is only what is typed and printed.
"""

from updater.cli import doing, permits, service, settings, showing  # noqa: F401  # they join the group
from updater.cli.root import bascule, main

__all__ = ["bascule", "main"]
