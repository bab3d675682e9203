"""The pages as Streamlit links them: paths relative to ``app.py``."""

DOMAINS = "views/domain_list.py"
REGISTER = "views/register.py"
DOMAIN = "views/domain_page.py"
PLAYGROUND = "views/playground.py"
RUNS = "views/run_list.py"
ACCESS = "views/access.py"
