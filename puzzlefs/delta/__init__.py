"""New metadata layers on top of an image: from a whole tree, or from the upper directory of an overlayfs."""
