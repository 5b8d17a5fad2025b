"""From files to samples: doors, store, folds, augmentation, data module."""
