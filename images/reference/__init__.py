"""The recipe of the reference OS: a small Debian system with slots, as three files of a payload.

Files in, files out. The recipe runs tools (mmdebstrap, mkfs.erofs, veritysetup, …) but needs no
root and no mounts, and opens no device. Loaders and disks are the business of other rooms.
"""
