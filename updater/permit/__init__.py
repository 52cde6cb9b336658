"""Leave to reboot: permits of a group of nodes. Decides nothing about updates.

`open_permits(settings, node=…, memory=…)` gives the keeper in etcd, `NoPermits` the one that
always grants; both keep `PermitKeeper`. README.md is the specification of this room. Importing
it does not load requests.
"""

from updater.permit.cluster import ClusterMark, ClusterMemory, FileClusterMemory
from updater.permit.contract import (
    GroupStatus,
    MaxChange,
    Node,
    Pace,
    Permit,
    PermitKeeper,
    Waiter,
    Waiting,
    WaitReason,
)
from updater.permit.document import Holder
from updater.permit.errors import PermitError
from updater.permit.none import NoPermits
from updater.permit.opening import open_permits
from updater.permit.settings import EtcdSettings

__all__ = [
    "ClusterMark",
    "ClusterMemory",
    "EtcdSettings",
    "FileClusterMemory",
    "GroupStatus",
    "Holder",
    "MaxChange",
    "NoPermits",
    "Node",
    "Pace",
    "Permit",
    "PermitError",
    "PermitKeeper",
    "WaitReason",
    "Waiter",
    "Waiting",
    "open_permits",
]
