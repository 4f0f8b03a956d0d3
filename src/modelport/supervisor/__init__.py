"""The parent of everything on one machine: prepares, starts and watches the engines and the gateway workers."""
