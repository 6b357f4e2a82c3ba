"""Published experiments measured with controls: one folder per paper, none of which knows another."""
