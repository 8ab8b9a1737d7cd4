@0xe0b6d460b1f22bb5;
# The image manifest, wire version 1: a blob of media type application/vnd.puzzlefs.image.rootfs.v1
# holds one Rootfs, which names the blobs of the metadata layers.

using Metadata = import "metadata.capnp";

struct VerityData {
  digest @0 :Data;         # sha256 of a stored blob
  verity @1 :Data;         # fs-verity digest of the same stored bytes
}

struct Rootfs {
  metadatas @0 :List(Metadata.BlobRef);   # topmost first; each blob holds one InodeVector
  fsVerityData @1 :List(VerityData);      # sorted by digest
  manifestVersion @2 :UInt64;
}
