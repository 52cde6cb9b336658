"""A loader that reads boot bits, as CoreOS's and Flatcar's GRUB do: nothing but bits is installed.

No distribution packages such a loader; who has one puts it on the disk by `contents` of the ESP.
"""

from __future__ import annotations

from partitions.loaders.job import Installation, Job, Loader


def prepare(_job: Job) -> Installation:
    """Return nothing: the bits are in the table already."""
    return Installation()


LOADER = Loader(boot_control="gptprio", prepare=prepare, needs_kernel=False, counts_in_table=True)
