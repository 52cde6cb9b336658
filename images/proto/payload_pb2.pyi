from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Extent(_message.Message):
    __slots__ = ("start_block", "num_blocks")
    START_BLOCK_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    start_block: int
    num_blocks: int
    def __init__(self, start_block: _Optional[int] = ..., num_blocks: _Optional[int] = ...) -> None: ...

class Signatures(_message.Message):
    __slots__ = ("signatures",)
    class Signature(_message.Message):
        __slots__ = ("version", "data", "unpadded_signature_size")
        VERSION_FIELD_NUMBER: _ClassVar[int]
        DATA_FIELD_NUMBER: _ClassVar[int]
        UNPADDED_SIGNATURE_SIZE_FIELD_NUMBER: _ClassVar[int]
        version: int
        data: bytes
        unpadded_signature_size: int
        def __init__(self, version: _Optional[int] = ..., data: _Optional[bytes] = ..., unpadded_signature_size: _Optional[int] = ...) -> None: ...
    SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    signatures: _containers.RepeatedCompositeFieldContainer[Signatures.Signature]
    def __init__(self, signatures: _Optional[_Iterable[_Union[Signatures.Signature, _Mapping]]] = ...) -> None: ...

class ImageInfo(_message.Message):
    __slots__ = ("size", "hash")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    size: int
    hash: bytes
    def __init__(self, size: _Optional[int] = ..., hash: _Optional[bytes] = ...) -> None: ...

class InstallOperation(_message.Message):
    __slots__ = ("type", "data_offset", "data_length", "src_extents", "src_length", "dst_extents", "dst_length", "data_sha256_hash", "src_sha256_hash", "dst_sha256", "dictionary_first", "dictionary_count", "source_segments", "output_segments")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REPLACE: _ClassVar[InstallOperation.Type]
        REPLACE_BZ: _ClassVar[InstallOperation.Type]
        MOVE: _ClassVar[InstallOperation.Type]
        BSDIFF: _ClassVar[InstallOperation.Type]
        SOURCE_COPY: _ClassVar[InstallOperation.Type]
        SOURCE_BSDIFF: _ClassVar[InstallOperation.Type]
        ZERO: _ClassVar[InstallOperation.Type]
        DISCARD: _ClassVar[InstallOperation.Type]
        REPLACE_XZ: _ClassVar[InstallOperation.Type]
        PUFFDIFF: _ClassVar[InstallOperation.Type]
        BROTLI_BSDIFF: _ClassVar[InstallOperation.Type]
        ZUCCHINI: _ClassVar[InstallOperation.Type]
        LZ4DIFF_BSDIFF: _ClassVar[InstallOperation.Type]
        LZ4DIFF_PUFFDIFF: _ClassVar[InstallOperation.Type]
        REPLACE_ZSTD: _ClassVar[InstallOperation.Type]
        SOURCE_ZSTD: _ClassVar[InstallOperation.Type]
        TARGET_ZSTD: _ClassVar[InstallOperation.Type]
        SOURCE_RECODE: _ClassVar[InstallOperation.Type]
    REPLACE: InstallOperation.Type
    REPLACE_BZ: InstallOperation.Type
    MOVE: InstallOperation.Type
    BSDIFF: InstallOperation.Type
    SOURCE_COPY: InstallOperation.Type
    SOURCE_BSDIFF: InstallOperation.Type
    ZERO: InstallOperation.Type
    DISCARD: InstallOperation.Type
    REPLACE_XZ: InstallOperation.Type
    PUFFDIFF: InstallOperation.Type
    BROTLI_BSDIFF: InstallOperation.Type
    ZUCCHINI: InstallOperation.Type
    LZ4DIFF_BSDIFF: InstallOperation.Type
    LZ4DIFF_PUFFDIFF: InstallOperation.Type
    REPLACE_ZSTD: InstallOperation.Type
    SOURCE_ZSTD: InstallOperation.Type
    TARGET_ZSTD: InstallOperation.Type
    SOURCE_RECODE: InstallOperation.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_LENGTH_FIELD_NUMBER: _ClassVar[int]
    SRC_EXTENTS_FIELD_NUMBER: _ClassVar[int]
    SRC_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DST_EXTENTS_FIELD_NUMBER: _ClassVar[int]
    DST_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DATA_SHA256_HASH_FIELD_NUMBER: _ClassVar[int]
    SRC_SHA256_HASH_FIELD_NUMBER: _ClassVar[int]
    DST_SHA256_FIELD_NUMBER: _ClassVar[int]
    DICTIONARY_FIRST_FIELD_NUMBER: _ClassVar[int]
    DICTIONARY_COUNT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    type: InstallOperation.Type
    data_offset: int
    data_length: int
    src_extents: _containers.RepeatedCompositeFieldContainer[Extent]
    src_length: int
    dst_extents: _containers.RepeatedCompositeFieldContainer[Extent]
    dst_length: int
    data_sha256_hash: bytes
    src_sha256_hash: bytes
    dst_sha256: bytes
    dictionary_first: int
    dictionary_count: int
    source_segments: _containers.RepeatedCompositeFieldContainer[Segment]
    output_segments: _containers.RepeatedCompositeFieldContainer[Segment]
    def __init__(self, type: _Optional[_Union[InstallOperation.Type, str]] = ..., data_offset: _Optional[int] = ..., data_length: _Optional[int] = ..., src_extents: _Optional[_Iterable[_Union[Extent, _Mapping]]] = ..., src_length: _Optional[int] = ..., dst_extents: _Optional[_Iterable[_Union[Extent, _Mapping]]] = ..., dst_length: _Optional[int] = ..., data_sha256_hash: _Optional[bytes] = ..., src_sha256_hash: _Optional[bytes] = ..., dst_sha256: _Optional[bytes] = ..., dictionary_first: _Optional[int] = ..., dictionary_count: _Optional[int] = ..., source_segments: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ..., output_segments: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ...) -> None: ...

class Segment(_message.Message):
    __slots__ = ("coder", "offset", "packed", "unpacked", "start", "used", "ahead", "behind")
    CODER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    UNPACKED_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    coder: int
    offset: int
    packed: int
    unpacked: int
    start: int
    used: int
    ahead: int
    behind: int
    def __init__(self, coder: _Optional[int] = ..., offset: _Optional[int] = ..., packed: _Optional[int] = ..., unpacked: _Optional[int] = ..., start: _Optional[int] = ..., used: _Optional[int] = ..., ahead: _Optional[int] = ..., behind: _Optional[int] = ...) -> None: ...

class Coder(_message.Message):
    __slots__ = ("function", "version", "level", "sample_sha256")
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    function: str
    version: str
    level: int
    sample_sha256: bytes
    def __init__(self, function: _Optional[str] = ..., version: _Optional[str] = ..., level: _Optional[int] = ..., sample_sha256: _Optional[bytes] = ...) -> None: ...

class IndexGroup(_message.Message):
    __slots__ = ("operations", "sha256")
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    operations: int
    sha256: bytes
    def __init__(self, operations: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class InstallProcedure(_message.Message):
    __slots__ = ("type", "operations", "old_info", "new_info")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KERNEL: _ClassVar[InstallProcedure.Type]
        PCR_POLICY: _ClassVar[InstallProcedure.Type]
    KERNEL: InstallProcedure.Type
    PCR_POLICY: InstallProcedure.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    OLD_INFO_FIELD_NUMBER: _ClassVar[int]
    NEW_INFO_FIELD_NUMBER: _ClassVar[int]
    type: InstallProcedure.Type
    operations: _containers.RepeatedCompositeFieldContainer[InstallOperation]
    old_info: ImageInfo
    new_info: ImageInfo
    def __init__(self, type: _Optional[_Union[InstallProcedure.Type, str]] = ..., operations: _Optional[_Iterable[_Union[InstallOperation, _Mapping]]] = ..., old_info: _Optional[_Union[ImageInfo, _Mapping]] = ..., new_info: _Optional[_Union[ImageInfo, _Mapping]] = ...) -> None: ...

class CowMergeOperation(_message.Message):
    __slots__ = ("type", "src_extent", "dst_extent", "src_offset")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        COW_COPY: _ClassVar[CowMergeOperation.Type]
        COW_XOR: _ClassVar[CowMergeOperation.Type]
        COW_REPLACE: _ClassVar[CowMergeOperation.Type]
    COW_COPY: CowMergeOperation.Type
    COW_XOR: CowMergeOperation.Type
    COW_REPLACE: CowMergeOperation.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SRC_EXTENT_FIELD_NUMBER: _ClassVar[int]
    DST_EXTENT_FIELD_NUMBER: _ClassVar[int]
    SRC_OFFSET_FIELD_NUMBER: _ClassVar[int]
    type: CowMergeOperation.Type
    src_extent: Extent
    dst_extent: Extent
    src_offset: int
    def __init__(self, type: _Optional[_Union[CowMergeOperation.Type, str]] = ..., src_extent: _Optional[_Union[Extent, _Mapping]] = ..., dst_extent: _Optional[_Union[Extent, _Mapping]] = ..., src_offset: _Optional[int] = ...) -> None: ...

class PartitionUpdate(_message.Message):
    __slots__ = ("partition_name", "run_postinstall", "postinstall_path", "filesystem_type", "new_partition_signature", "old_partition_info", "new_partition_info", "operations", "postinstall_optional", "hash_tree_data_extent", "hash_tree_extent", "hash_tree_algorithm", "hash_tree_salt", "fec_data_extent", "fec_extent", "fec_roots", "version", "merge_operations", "estimate_cow_size", "estimate_op_count_max", "index_groups", "index_hash_size", "age_operations")
    PARTITION_NAME_FIELD_NUMBER: _ClassVar[int]
    RUN_POSTINSTALL_FIELD_NUMBER: _ClassVar[int]
    POSTINSTALL_PATH_FIELD_NUMBER: _ClassVar[int]
    FILESYSTEM_TYPE_FIELD_NUMBER: _ClassVar[int]
    NEW_PARTITION_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    OLD_PARTITION_INFO_FIELD_NUMBER: _ClassVar[int]
    NEW_PARTITION_INFO_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    POSTINSTALL_OPTIONAL_FIELD_NUMBER: _ClassVar[int]
    HASH_TREE_DATA_EXTENT_FIELD_NUMBER: _ClassVar[int]
    HASH_TREE_EXTENT_FIELD_NUMBER: _ClassVar[int]
    HASH_TREE_ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    HASH_TREE_SALT_FIELD_NUMBER: _ClassVar[int]
    FEC_DATA_EXTENT_FIELD_NUMBER: _ClassVar[int]
    FEC_EXTENT_FIELD_NUMBER: _ClassVar[int]
    FEC_ROOTS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MERGE_OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_COW_SIZE_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_OP_COUNT_MAX_FIELD_NUMBER: _ClassVar[int]
    INDEX_GROUPS_FIELD_NUMBER: _ClassVar[int]
    INDEX_HASH_SIZE_FIELD_NUMBER: _ClassVar[int]
    AGE_OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    partition_name: str
    run_postinstall: bool
    postinstall_path: str
    filesystem_type: str
    new_partition_signature: _containers.RepeatedCompositeFieldContainer[Signatures.Signature]
    old_partition_info: ImageInfo
    new_partition_info: ImageInfo
    operations: _containers.RepeatedCompositeFieldContainer[InstallOperation]
    postinstall_optional: bool
    hash_tree_data_extent: Extent
    hash_tree_extent: Extent
    hash_tree_algorithm: str
    hash_tree_salt: bytes
    fec_data_extent: Extent
    fec_extent: Extent
    fec_roots: int
    version: str
    merge_operations: _containers.RepeatedCompositeFieldContainer[CowMergeOperation]
    estimate_cow_size: int
    estimate_op_count_max: int
    index_groups: _containers.RepeatedCompositeFieldContainer[IndexGroup]
    index_hash_size: int
    age_operations: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, partition_name: _Optional[str] = ..., run_postinstall: _Optional[bool] = ..., postinstall_path: _Optional[str] = ..., filesystem_type: _Optional[str] = ..., new_partition_signature: _Optional[_Iterable[_Union[Signatures.Signature, _Mapping]]] = ..., old_partition_info: _Optional[_Union[ImageInfo, _Mapping]] = ..., new_partition_info: _Optional[_Union[ImageInfo, _Mapping]] = ..., operations: _Optional[_Iterable[_Union[InstallOperation, _Mapping]]] = ..., postinstall_optional: _Optional[bool] = ..., hash_tree_data_extent: _Optional[_Union[Extent, _Mapping]] = ..., hash_tree_extent: _Optional[_Union[Extent, _Mapping]] = ..., hash_tree_algorithm: _Optional[str] = ..., hash_tree_salt: _Optional[bytes] = ..., fec_data_extent: _Optional[_Union[Extent, _Mapping]] = ..., fec_extent: _Optional[_Union[Extent, _Mapping]] = ..., fec_roots: _Optional[int] = ..., version: _Optional[str] = ..., merge_operations: _Optional[_Iterable[_Union[CowMergeOperation, _Mapping]]] = ..., estimate_cow_size: _Optional[int] = ..., estimate_op_count_max: _Optional[int] = ..., index_groups: _Optional[_Iterable[_Union[IndexGroup, _Mapping]]] = ..., index_hash_size: _Optional[int] = ..., age_operations: _Optional[_Iterable[int]] = ...) -> None: ...

class DeltaArchiveManifest(_message.Message):
    __slots__ = ("partition_operations", "noop_operations", "old_partition_info", "new_partition_info", "procedures", "block_size", "signatures_offset", "signatures_size", "minor_version", "partitions", "max_timestamp", "partial_update", "security_patch_level", "coders")
    PARTITION_OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    NOOP_OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    OLD_PARTITION_INFO_FIELD_NUMBER: _ClassVar[int]
    NEW_PARTITION_INFO_FIELD_NUMBER: _ClassVar[int]
    PROCEDURES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_SIZE_FIELD_NUMBER: _ClassVar[int]
    MINOR_VERSION_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_UPDATE_FIELD_NUMBER: _ClassVar[int]
    SECURITY_PATCH_LEVEL_FIELD_NUMBER: _ClassVar[int]
    CODERS_FIELD_NUMBER: _ClassVar[int]
    partition_operations: _containers.RepeatedCompositeFieldContainer[InstallOperation]
    noop_operations: _containers.RepeatedCompositeFieldContainer[InstallOperation]
    old_partition_info: ImageInfo
    new_partition_info: ImageInfo
    procedures: _containers.RepeatedCompositeFieldContainer[InstallProcedure]
    block_size: int
    signatures_offset: int
    signatures_size: int
    minor_version: int
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionUpdate]
    max_timestamp: int
    partial_update: bool
    security_patch_level: str
    coders: _containers.RepeatedCompositeFieldContainer[Coder]
    def __init__(self, partition_operations: _Optional[_Iterable[_Union[InstallOperation, _Mapping]]] = ..., noop_operations: _Optional[_Iterable[_Union[InstallOperation, _Mapping]]] = ..., old_partition_info: _Optional[_Union[ImageInfo, _Mapping]] = ..., new_partition_info: _Optional[_Union[ImageInfo, _Mapping]] = ..., procedures: _Optional[_Iterable[_Union[InstallProcedure, _Mapping]]] = ..., block_size: _Optional[int] = ..., signatures_offset: _Optional[int] = ..., signatures_size: _Optional[int] = ..., minor_version: _Optional[int] = ..., partitions: _Optional[_Iterable[_Union[PartitionUpdate, _Mapping]]] = ..., max_timestamp: _Optional[int] = ..., partial_update: _Optional[bool] = ..., security_patch_level: _Optional[str] = ..., coders: _Optional[_Iterable[_Union[Coder, _Mapping]]] = ...) -> None: ...
