"""What the blocks of a U-net are called, in schedules, logs and optimizer groups."""

#: Encoder blocks from the input side to the deepest; an encoder with fewer steps lacks the first ones.
ENCODER_BLOCKS = ("stem", "stage1", "stage2", "stage3", "stage4")
#: The blocks of every U-net, and of those that also name the lesions of a slice, behind its encoder.
OUTSIDE_ENCODER = ("decoder", "head", "classifier")
