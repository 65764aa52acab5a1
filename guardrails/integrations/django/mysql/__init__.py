"""A database backend of Django's; its parts are where Django looks for them."""
