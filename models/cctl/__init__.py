"""CCTL: weighing source samples by what they give the target."""
