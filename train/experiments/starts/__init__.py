"""Two starts of distillation beside each other: regression on trajectories (`ode`) and consistency (`cd`)."""
