"""The node on D-Bus: its own interface and that of update_engine. asyncio stays in this room.

`library` is the only file that knows dbus-next; `service` is the thread inside the daemon, and
`client` what a command asks through. Nothing here decides anything about updates: both doors
lead to `updater.verbs`. docs/d-bus.md is the specification for whoever calls.
"""
