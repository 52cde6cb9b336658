"""The node: decides, installs, reboots, proves itself. Uses images and partitions."""

from typing import Final

ENGINE_VERSION: Final = "0.1.0"  # of bascule itself, as releases may require it (min_engine)
