"""What can go wrong at the release desk, as one tree drawn by what a person must look at.

Each leaf owns a stable code, a hint and an exit status. Nothing is raised here.

    ServerError
    ├── DeskError                  the folder the desk lives in
    │   ├── DeskMissingError, DeskExistsError, DeskBusyError, DeskUnwritableError
    │   └── DeskSettingsError
    ├── SigningError               keys and what they sign
    │   ├── KeysMissingError, KeyFileError, KeyDuplicateError, KeyOverwriteError
    │   └── RoleUnknownError, RepositoryDamagedError
    ├── DatabaseError              the store
    │   └── DatabaseBusyError, DatabaseUnreadableError, DatabaseNewerError
    ├── ReleaseError               what is published
    │   ├── ReleaseExistsError, ReleaseUnknownError, ReleaseWithdrawnError, ReleaseFormatError
    │   ├── DeltaSourceUnknownError, DeltaTargetError, DeltaKeyError, DeltasTooManyError
    │   └── PayloadAbsentError
    ├── ChannelError
    │   ├── ChannelExistsError, ChannelUnknownError, FloorLoweredError, BelowFloorError
    │   └── StopsMissingError, DowngradeUnboundedError
    ├── GroupError
    │   └── GroupExistsError, GroupUnknownError
    ├── NodeUnknownError
    └── InputError                 a value given by a person
        └── NameInvalidError, TimeInvalidError, ListenError
"""

from __future__ import annotations

from typing import ClassVar

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_CANNOT_TELL = 6


class ServerError(Exception):
    """Any failure this room reports; `str()` of it is one sentence with the values.

    Attributes:
        code: kebab-case, stable, never reused: operators grep and alert on it.
        hint: what a person should do next.
        exit_status: what a command that ends with it returns.
    """

    code: ClassVar[str] = "server"
    hint: ClassVar[str] = "Report this: an error of the server has no code of its own."
    exit_status: ClassVar[int] = EXIT_FAILED


class DeskError(ServerError):
    """The folder the release desk lives in is not as it must be."""


class DeskMissingError(DeskError):
    """The folder does not exist or is no release desk."""

    code = "desk-missing"
    hint = "Make one with `bascule-server init DIR`, or give the folder that has server.toml in it."
    exit_status = EXIT_USAGE


class DeskExistsError(DeskError):
    """A new desk would be laid over files that are there."""

    code = "desk-exists"
    hint = "Give an empty or a new folder; an existing desk is never overwritten."
    exit_status = EXIT_REFUSED


class DeskBusyError(DeskError):
    """Another command works on the desk."""

    code = "desk-busy"
    hint = "Wait for the other `bascule-server` command to end, then try again."
    exit_status = EXIT_CANNOT_TELL


class DeskUnwritableError(DeskError):
    """A file of the desk cannot be written."""

    code = "desk-unwritable"
    hint = "Check owner, permissions and free space of the folder; nothing was half published."


class DeskSettingsError(DeskError):
    """server.toml cannot be read or holds what it must not."""

    code = "desk-settings"
    hint = "server/README.md lists every key of server.toml."
    exit_status = EXIT_USAGE


class SigningError(ServerError):
    """Keys, or what they have signed, are not as they must be."""

    exit_status = EXIT_REFUSED


class KeysMissingError(SigningError):
    """Too few keys of a role are at hand to sign for it."""

    code = "signing-keys-missing"
    hint = "Bring the offline keys of this role and name their folder with --keys."


class KeyFileError(SigningError):
    """A signing key file cannot be read."""

    code = "signing-key-file"
    hint = "The file must hold one Ed25519 private key as PEM; give --passphrase-file if encrypted."


class KeyDuplicateError(SigningError):
    """One key would count twice towards a threshold."""

    code = "signing-key-duplicate"
    hint = "Each key of a role must be another one, or its threshold means nothing."


class KeyOverwriteError(SigningError):
    """A new signing key would replace one that exists."""

    code = "signing-key-exists"
    hint = "Give another --keys folder, or move the old key away: it cannot be made again."


class RoleUnknownError(SigningError):
    """There is no signing role of this name."""

    code = "role-unknown"
    hint = "See what there is with `bascule-server metadata show DIR`."


class RepositoryDamagedError(SigningError):
    """The signed metadata on disk does not verify, so nothing is signed on top of it."""

    code = "repository-damaged"
    hint = "Restore DIR/repository from a mirror or a backup: all of it is public files."


class DatabaseError(ServerError):
    """The database cannot be used."""


class DatabaseBusyError(DatabaseError):
    """Another writer holds the database for too long."""

    code = "database-busy"
    hint = "Try again; if it lasts, look for a process that keeps bascule.db open."
    exit_status = EXIT_CANNOT_TELL


class DatabaseUnreadableError(DatabaseError):
    """The database file is damaged, missing or not ours."""

    code = "database-unreadable"
    hint = "It holds no trust: move bascule.db away; groups must then be made again, nodes return."


class DatabaseNewerError(DatabaseError):
    """A newer bascule has worked on this database."""

    code = "database-newer"
    hint = "Use the newer `bascule-server` on this folder, or restore an older database."


class ReleaseError(ServerError):
    """Something about a release says no."""

    exit_status = EXIT_REFUSED


class ReleaseExistsError(ReleaseError):
    """The version was published before with other bytes or other facts."""

    code = "release-exists"
    hint = "A published version never changes: give the new build a new version."


class ReleaseUnknownError(ReleaseError):
    """No such release was published."""

    code = "release-unknown"
    hint = "See what there is with `bascule-server release list DIR`."


class ReleaseWithdrawnError(ReleaseError):
    """The release was withdrawn."""

    code = "release-withdrawn"
    hint = "A withdrawn version stays withdrawn: publish a new one."


class ReleaseFormatError(ReleaseError):
    """The release has a payload of this format, or in the wrong order."""

    code = "release-format"
    hint = "Add the payload of format 2 first; one of format 1 beside it serves stock clients."


class DeltaSourceUnknownError(ReleaseError):
    """A delta starts from no image that was published."""

    code = "delta-source-unknown"
    hint = "Build it from the image of a release that `bascule-server release list DIR` shows."


class DeltaTargetError(ReleaseError):
    """A delta makes another image than the release that it is added to."""

    code = "delta-target"
    hint = "Build it to the very image that the release's full payload makes."


class DeltaKeyError(ReleaseError):
    """Deltas would be made that no node takes: nothing at hand signs them as the payload is."""

    code = "delta-key"
    hint = (
        "Name the private key of the payload with --payload-key; or keep it where it is: build the"
        " deltas there with `bascule-image build --source` and add them with --delta."
        " --deltas-from 0 makes none."
    )
    exit_status = EXIT_USAGE


class DeltasTooManyError(ReleaseError):
    """A release would have more payloads than a channel can name, and could not be promoted."""

    code = "deltas-too-many"
    hint = "Leave out those from the oldest versions: their nodes take the full payload, in part."


class PayloadAbsentError(ReleaseError):
    """A payload that was signed is not on this server."""

    code = "payload-absent"
    hint = (
        "`bascule-server release add` with the same file brings it back; it is named by its hash."
    )


class ChannelError(ServerError):
    """Something about a channel says no."""

    exit_status = EXIT_REFUSED


class ChannelExistsError(ChannelError):
    """There is a channel of this name."""

    code = "channel-exists"
    hint = "See what there is with `bascule-server channel list DIR`."


class ChannelUnknownError(ChannelError):
    """There is no channel of this name."""

    code = "channel-missing"
    hint = "Make it with `bascule-server channel create DIR NAME`."


class FloorLoweredError(ChannelError):
    """A rollback floor would go down."""

    code = "floor-lowered"
    hint = "Floors only rise: nodes keep the highest they have seen."


class BelowFloorError(ChannelError):
    """A release lies below the channel's rollback floor."""

    code = "release-below-floor"
    hint = "No node would take it: publish a build with a rollback index at or above the floor."


class StopsMissingError(ChannelError):
    """A version that may not be jumped over is no release."""

    code = "stop-unknown"
    hint = "Publish the stop first, or leave it out with --remove-stop."


class DowngradeUnboundedError(ChannelError):
    """Leave to go back lacks one of its two ends."""

    code = "downgrade-unbounded"
    hint = "Give --downgrade-from VERSION together with --until TIME."
    exit_status = EXIT_USAGE


class GroupError(ServerError):
    """Something about a group says no."""

    exit_status = EXIT_REFUSED


class GroupExistsError(GroupError):
    """There is a group of this name."""

    code = "group-exists"
    hint = "Change it with `bascule-server group set DIR NAME …`."


class GroupUnknownError(GroupError):
    """There is no group of this name."""

    code = "group-unknown"
    hint = "See what there is with `bascule-server group list DIR`."


class NodeUnknownError(ServerError):
    """No node of this identity ever reported."""

    code = "node-unknown"
    hint = "See who reported with `bascule-server node list DIR`."
    exit_status = EXIT_REFUSED


class InputError(ServerError):
    """A value given by a person is not of the right shape."""

    exit_status = EXIT_USAGE


class NameInvalidError(InputError):
    """A name has characters it must not have."""

    code = "name-invalid"
    hint = "Channels: a lower-case letter, then a-z, 0-9, -; others: letters, digits, . _ -"


class TimeInvalidError(InputError):
    """A time cannot be read."""

    code = "time-invalid"
    hint = "Write it as 2026-12-01T06:00:00Z; a zone is required."


class ListenError(InputError):
    """The address cannot be listened on."""

    code = "listen-failed"
    hint = "Give --listen HOST:PORT with a free port, or port 0 for any."
    exit_status = EXIT_FAILED
