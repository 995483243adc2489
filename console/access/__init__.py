"""Who may use the console, and how strangers are kept out."""
