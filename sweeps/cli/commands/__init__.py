"""What each command of `peft-sweep` does; their names and options are in `sweeps/cli/app`.

run               run, resume, retry, confirm: launch a sweep, show how it goes, say what came of it
validate          what is wrong with a sweep file, or what the sweep would do
data              what would be trained: rows, classes, lengths, leaks
plan              what a sweep will take: memory, time, money, disk
init              a commented sweep file to start from
schema            the JSON schema of the sweep file
leaderboard       leaderboard and list
report            a sweep as one HTML page
show              all that is known of one trial
status            status, watch and stop: a sweep seen, and asked to stop, from outside
starting          the same of a sweep that has no trial yet
delete            delete and gc: sweeps, and what no sweep needs, removed
archive           archive and restore: a sweep as one file
export            write a trial's adapter, and print what was measured on the written files
compose           several adapters of one base combined into one
train             the recommended configuration on all the data, and exported
ui                hand over to MLflow's server, or Optuna's dashboard, on a storage
submit            submit, and logs, status and stop with --address: sweeps as jobs of a cluster
doctor            is this machine ready for a sweep?
"""
