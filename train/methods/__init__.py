"""Training methods: the loop they share, SC-DMD, and the stages that make its initial student."""
