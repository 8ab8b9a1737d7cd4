"""What several tests share: descriptions of trees, builders of images, an examiner with limits."""
