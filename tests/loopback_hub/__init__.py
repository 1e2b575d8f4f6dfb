"""A loopback hub: a small HTTP server that speaks enough of the Hugging Face Hub's protocol for its own clients.

`python -m tests.loopback_hub --port 8080 --dir DIR` starts it (see README.md here); tests take the fixture `hub`.
"""
