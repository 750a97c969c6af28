"""The bridge to the mm libraries: adapter, registries, operators in the place of mmcv's, optimizer, augmentation."""
