"""Chunks made smaller: raw bytes ⇄ the zstd bytes that are stored for them.

Format versions 1 and 2 store one plain zstd frame, version 3 the zstd seekable format. What a blob holds is
told by its bytes, so there is one ``decompress_chunk`` for all of them. Whether a chunk is compressed at all
is not decided here: the builder keeps what is smaller.

All of it is thread safe: each thread has its own zstd contexts, which may not be shared (one compressor
used by two threads at once crashes the process).
"""

from puzzlefs.compression.zstd import compress_chunk, compress_whole, decompress_chunk

__all__ = ["compress_chunk", "compress_whole", "decompress_chunk"]
