"""A discriminator on real clips: the model, and the losses of both sides.

Used by `train.methods.adversarial` and by the experiment that made salt-tiny.
"""
