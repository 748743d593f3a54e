"""The ablation study of Salt on the Shapes world (docs/study.md)."""
