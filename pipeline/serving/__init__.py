"""A judge as an HTTP service: `reasrm serve`.

`app` has the routes and `wire` what goes over them; `service` asks the judge; `gate` refuses what is too large, has no
token or comes when too much waits; `gauges` counts; `server` runs it until SIGTERM.
"""
