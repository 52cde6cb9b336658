"""The Omaha v3 language that nodes and servers share: messages, XML codec, numbers.

Pure: bytes in, frozen values out. No socket, no clock, no policy.
"""

from __future__ import annotations

from updater.omaha.codec import (
    OmahaFormatError,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from updater.omaha.messages import (
    Action,
    AppRequest,
    AppResponse,
    Event,
    Manifest,
    OsInfo,
    Package,
    Ping,
    Request,
    Response,
    UpdateCheck,
    UpdateCheckResult,
)

__all__ = [
    "Action",
    "AppRequest",
    "AppResponse",
    "Event",
    "Manifest",
    "OmahaFormatError",
    "OsInfo",
    "Package",
    "Ping",
    "Request",
    "Response",
    "UpdateCheck",
    "UpdateCheckResult",
    "decode_request",
    "decode_response",
    "encode_request",
    "encode_response",
]
