"""What notebooks call: where a model looks as a figure, and a run with its evaluations as tables"""
