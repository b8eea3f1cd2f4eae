"""The target ``arduino``: a model as a library of the Arduino environment, with a sketch."""
