"""Where the bytes go: tables, slots, durable writing, boot control.

Knows no payload and no network. `README.md` is the specification of this room.
"""
