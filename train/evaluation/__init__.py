"""Evaluation of students: ShapeBench, semigroup defect, drift, videos for VBench."""
