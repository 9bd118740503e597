"""What people look at: tables on the terminal (the HTML report has its place here)."""
