"""What a user names (a model, data, images), made into what the library takes."""
