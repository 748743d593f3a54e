"""Training methods: SC-DMD, the stages that train its initial student, and the loop that they share."""
