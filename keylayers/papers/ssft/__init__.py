"""Shortcut suppression (Yang et al. 2023): does silencing one skip connection remove a backdoor?"""
