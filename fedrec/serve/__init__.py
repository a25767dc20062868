"""An HTTP service over a run's recommender or merchants' own, and the door through which feedback comes in.

    app        the application: what a process of the service is made of
    service    what a request needs: settings, keys, merchants, the thread that ranks
    guard      before every request: who asks, how large, how long; the head of every answer
    schemas    requests and answers
    routes/    one router for each kind of question
    tenants    the merchants of a process, and what of each is loaded
    models     one loaded state of a folder, and how a change of it is noticed
    drift      drift and the ledger's figures, measured on demand by a thread of their own
    page/      what `/` shows, in one file
    worker     the one thread that ranks, and the queue before it

Nothing here is imported by `server` or `clients`: what comes in by this door stays at the merchant.
"""
