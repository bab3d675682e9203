"""The resumable jobs: train, launch, preview."""
