"""The target ``zephyr``: a model as a complete Zephyr application, built and run on its boards."""
