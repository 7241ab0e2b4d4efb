"""The app: networks looked at in a browser. What a picture shows is computed without it, by `softgate.app.look`."""
