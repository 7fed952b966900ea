"""What each node does, one function each: settings and sockets in, a socket value out.

Nodes and the headless runner call these and nothing else of the core. What trains and draws is imported when it is
called, so that ComfyUI starts quickly.
"""
