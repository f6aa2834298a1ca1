"""The checks of `make image-test`. infra/image_test.sh prepares podman and runs them."""
