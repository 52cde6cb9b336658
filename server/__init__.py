"""The release desk: publishes, steers and listens. Uses images and the Omaha messages."""
