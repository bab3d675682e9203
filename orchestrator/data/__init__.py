"""Events into batches; versions and online features."""
