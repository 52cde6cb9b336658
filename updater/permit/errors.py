"""What can go wrong between a node and the permits of its group.

PermitError                       (an UpdaterError: code, hint, exit status)
├── PermitUnavailableError        etcd cannot be asked, or not in time: tried again by itself
│   └── PermitContendedError      etcd answers, but others were always faster
├── PermitUnauthorizedError       etcd knows us not, or not enough
├── PermitClusterChangedError     this is not the etcd that was asked before
├── PermitDocumentError           the group's document is none of ours
├── PermitFullError               no place is free
├── PermitNotHeldError            asked to return what nobody holds
├── PermitMaxError                a number of places that cannot be
├── PermitInsecureError           plain HTTP over a network
├── PermitSettingsError           settings that cannot be used
└── PermitKeeperError             no keeper is configured, so there is nothing to steer
"""

from __future__ import annotations

from updater.errors import (
    EXIT_CANNOT_TELL,
    EXIT_FAILED,
    EXIT_NOTHING,
    EXIT_REFUSED,
    EXIT_USAGE,
    UpdaterError,
)


class PermitError(UpdaterError):
    """Anything that stops the taking, the returning or the steering of permits."""

    code = "permit"
    hint = "`bascule permit status` shows the group."


class PermitUnavailableError(PermitError):
    """No endpoint of etcd answered; whether a write was done is not known."""

    code = "permit-unavailable"
    hint = (
        "Check that etcd runs and has a quorum, and the endpoints and certificates in [permit]; "
        "it is tried again by itself."
    )
    exit_status = EXIT_CANNOT_TELL


class PermitContendedError(PermitUnavailableError):
    """Others changed the document each time between our look and our write."""

    code = "permit-contended"
    hint = "Many nodes change the group at this moment; it is tried again by itself."


class PermitUnauthorizedError(PermitError):
    """etcd refuses the user, its password or its rights."""

    code = "permit-unauthorized"
    hint = (
        "Check permit.username and permit.password_file; the user's role needs readwrite on the "
        "prefix /bascule/permit/ (updater/permit/README.md)."
    )
    exit_status = EXIT_REFUSED


class PermitClusterChangedError(PermitError):
    """The etcd that answers is not the one that was asked before, or lost what it knew."""

    code = "permit-cluster-changed"
    hint = (
        "If etcd was replaced or restored on purpose: see that no node of the group is down for a "
        "reboot, then remove the named file on this node."
    )
    exit_status = EXIT_REFUSED


class PermitDocumentError(PermitError):
    """The document of the group cannot be understood; it is never overwritten."""

    code = "permit-document"
    hint = (
        "Look at the named key with etcdctl. If it is damaged, see that no node of the group is "
        "down for a reboot, delete the key and run `bascule permit set-max`."
    )
    exit_status = EXIT_FAILED


class PermitFullError(PermitError):
    """Every place of the group is taken, or the group has none."""

    code = "permit-full"
    hint = "`bascule permit status` shows who holds a permit, since when and why."
    exit_status = EXIT_REFUSED


class PermitNotHeldError(PermitError):
    """The named node holds no permit."""

    code = "permit-not-held"
    hint = "`bascule permit status` lists the holders; an id is given in full."
    exit_status = EXIT_NOTHING


class PermitMaxError(PermitError):
    """A number of places that no group can have."""

    code = "permit-max"
    hint = "0 means that nobody may reboot."
    exit_status = EXIT_USAGE


class PermitInsecureError(PermitError):
    """The password and the permits would cross a network readable and forgeable."""

    code = "permit-insecure"
    hint = "Use https, or set permit.insecure = true if that network is trusted."
    exit_status = EXIT_REFUSED


class PermitSettingsError(PermitError):
    """The settings of the permit contradict themselves or name files that cannot be used."""

    code = "permit-settings"
    hint = "Correct [permit] in the settings; docs/operating-a-node.md lists every setting."
    exit_status = EXIT_USAGE


class PermitKeeperError(PermitError):
    """This node asks nobody before it reboots."""

    code = "permit-keeper"
    hint = 'Set permit.kind = "etcd" and its endpoints to share permits with other nodes.'
    exit_status = EXIT_USAGE
