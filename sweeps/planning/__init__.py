"""What a sweep will take and do, told before it is launched.

sweep_plan   all of it, as one record
processes    that try steps side by side
planned_points  what single points take, and what would make them fit
points       what its space holds, and what is turned away before launch
downloads    what comes from the Hub, by its metadata
kept_plan    the plan for the report
learned      what finished trials say of the predictions
costs        GPU-hours, hours and money, from a trial's seconds and the pruner
"""
