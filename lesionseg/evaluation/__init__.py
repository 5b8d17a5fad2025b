"""The whole cascade scored on a store: one case, all cases pooled, the text, and the verb `evaluate`."""
