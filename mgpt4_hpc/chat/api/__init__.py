"""The endpoint that clients of OpenAI's chat completions API talk to.

Computing the answers is in ``chat.engine``, the token and the limits of requests in ``chat``.
"""
