"""
Clusters, before one is there: the file that describes one, and what it becomes for whoever makes the machines.

What decides is pure: text, variables and flags go in, a `ClusterSpec`, text or a plan comes out. Nothing here imports
Ray, and a cloud's library is imported in the module of its name alone, where something is done there.

values        what single values of a cluster.yaml have to be
models        one frozen model for each provider, with all fields and defaults
explanation   what pydantic found wrong, in the words of cluster.yaml
bounds        how many nodes there may be, and who said so
loading       text of a cluster.yaml to a `Cluster`, or all problems of the file at once
problems      the index of references
machinetypes  what a machine of a cloud has, as far as the name of its type tells
names         what is called how, in a cloud and on its nodes
nodesetup     the commands that make a node of a bare machine
launcher      the file of Ray's launcher, for aws, gcp and azure
manifest      the RayCluster, for kubernetes
hosts         the steps over SSH, for machines; what is asked of a Ray cluster that is there
export        all of these, as the YAML that `cortex cluster export` prints
made          the list of what is made for a cluster, and how that is removed
aws           what is made on aws, with boto3
"""
